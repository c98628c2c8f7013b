"""Values of environment variables that shells, formats and configuration files like to change."""

# What of them is found nowhere else.
AWKWARD_MARK = "awkward-5c1e90"
AWKWARD_VARIABLES = {
    "AWKWARD_DOLLARS": "p$ss$$w${HOME}`id`$(id)",
    "AWKWARD_QUOTES": 'it\'s "quoted" \\ back\\n',
    "AWKWARD_LINES": f"-----BEGIN X-----\n{AWKWARD_MARK}\r\n\tindented\n-----END X-----\n",
    "AWKWARD_PERCENT": "100%s %(here)s %%",
    "AWKWARD_EQUALS": "=a=b #c ;d ",
    "AWKWARD_LETTERS": "\N{LATIN SMALL LETTER U WITH DIAERESIS}nïcode ✓",
    "AWKWARD_EMPTY": "",
}
