"""What the tests of faults share: a system whose processes can be killed one by one, and what holds after any fault."""
