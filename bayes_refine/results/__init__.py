"""Write the results of a fit or a merge."""
