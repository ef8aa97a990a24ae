"""The channels of a network: which belong together, their zeros, their removal, and the proof that it is right."""
