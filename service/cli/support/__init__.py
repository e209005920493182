"""What commands share: options made from specs, tables and progress bars, groups of processes."""
