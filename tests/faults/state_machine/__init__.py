"""The state machines: what they change, the model of an index in memory, and what an answer has to be."""
