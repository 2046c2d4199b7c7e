"""`gendistill report`: one HTML page of runs that needs no network, with every table and plot as files beside it."""
