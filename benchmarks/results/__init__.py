"""The tables of docs/results.md: what is compared, how it is run, and the page that is made of it."""
