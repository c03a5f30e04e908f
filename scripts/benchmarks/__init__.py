"""What `scripts/bench` measures: chorus beside its bare limits, beside other supervisors, and with two hundred specialists."""
