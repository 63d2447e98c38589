"""Images of any size: windows in, the whole image's CAMs out, exactly."""
