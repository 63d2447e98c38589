"""How well seeds, peers, SSA and its options fit true masks or boxes."""
