"""Which rows a table or figure needs, and how they are found."""
