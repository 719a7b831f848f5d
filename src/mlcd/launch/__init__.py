"""Run one function on N ranks: options, driver, ranks, jobs, leases."""
