"""Names and texts that a careless page or card would take for markup."""

HOSTILE = [
    "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "</style><b>",
    "\"'><svg onload=alert(1)>", "a|b\n# x", "a\r\n\r\n| --- |\r\n", "`code` and ``more``",
    "```\nfence", "[link](javascript:alert(1))", "![image](https://example.org/x.png)",
    "<https://example.org>", "&lt;b&gt; &amp; &#60;", "*a* **b** _c_ __d__ ~~e~~",
    "- a list", "+ a list", "1. a list", "2) a list", "> a quotation", "# a heading", "---", "===",
    "    indented", "\\|", "a\\`b`", "$x$ \\(y\\) $$z$$", "{{ 7 * 7 }} {% raw %} {# c #} ${x}",
    "<!-- comment", "[^1] [x]: y", "\u2028line\u2029separators", "\u202eevil", "byte \udcff",
    "nul \x00 bell \x07",
]
