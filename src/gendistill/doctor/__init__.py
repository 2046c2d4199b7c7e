"""Does this machine compute what it should? Measures the recurrence and a small student on the user's own device."""
