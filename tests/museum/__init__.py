"""The museum of traps: silent faults of the field, each shown in the library that has it, and that ours has not."""
