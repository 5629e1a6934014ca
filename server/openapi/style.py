"""The style sheet of the page of the OpenAPI document."""

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent) }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 68rem; padding: 1rem }
h1 { font-size: 1.6rem; margin: 0 }
h2 { margin: 2rem 0 .5rem }
h3 { margin: 1.5rem 0 0 }
h4 { margin: 1rem 0 .25rem }
p { margin: .25rem 0 }
p:empty { display: none }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere }
em { font-size: .85em; opacity: .7 }
details { border: 1px solid var(--line); border-radius: 6px }
details { margin: .4rem 0; padding: .5rem .75rem }
summary { cursor: pointer }
summary span { opacity: .75 }
summary b { display: inline-block; font-size: .8em; min-width: 4.5em }
b.get { color: #1a7f5a } b.post { color: #2563c9 } b.delete { color: #c2362f }
table { border-collapse: collapse; width: 100% }
td { border-top: 1px solid var(--line); padding: .3rem .6rem .3rem 0; vertical-align: top }
td:first-child { white-space: nowrap; width: 15rem }
td:nth-child(2) { min-width: 20rem }
section { scroll-margin-top: 1rem }
section:target { outline: 2px solid #2563c9; outline-offset: 6px }
"""
