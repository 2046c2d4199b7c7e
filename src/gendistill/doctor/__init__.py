"""Does this machine compute what it should? Measures the recurrence and a small student on the user's own device.

`checks.all_checks` lists the checks; `Check.run` measures one and never raises. Nothing here prints.
"""
