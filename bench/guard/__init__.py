"""What ``python -m bench compare BASE`` is made of: two trees side by side in one run.

``trees`` fetches them and imports the package from exactly one; ``cases`` is what is called, ``plain`` what comes out
of it by definition, ``accuracy`` holds the one against the other. ``worker`` is a process that has one tree, ``timing``
asks three of them in turn, ``verdict`` is the statistics. ``gates`` compares what needs no clock: the ahead-of-time
report and the traffic that ``counted`` counts, each in a process that ``launch`` gives its tree to.
"""
