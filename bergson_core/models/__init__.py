"""Language models: loading them safely, their tracked modules, hooks, one forward and backward pass, generation."""
