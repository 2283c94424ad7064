"""Trade on a compex exchange from Python."""
