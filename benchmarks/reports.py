"""A benchmark's results as files: NAME.json, NAME.md and NAME.svg, and in the docs. `tables` is the module that makes
text (`markdown`) and a plot (`plot`) of them, and knows the markers of its place in the docs (`BEGIN`, `END`)."""
import json
import sys

import markers


def keep(name, results, folder):
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def write(name, tables, results, folder, has_plot=True):
    """All three files, without the plot where matplotlib is missing; prints the text."""
    keep(name, results, folder)
    plotted = None
    try:
        if has_plot:
            tables.plot(results, folder / f"{name}.svg")
            plotted = f"{name}.svg"
    except ImportError:
        print("warning: no plot: matplotlib is not installed; --docs draws it later", file=sys.stderr)
    text = tables.markdown(results, plotted)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def write_docs(name, tables, docs, folder):
    """What `write` left in a folder, into a text of the docs and a plot beside it."""
    results = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    text = tables.markdown(results, f"{name}.svg")
    docs.write_text(markers.replace_between(docs.read_text(encoding="utf-8"), tables.BEGIN, tables.END, text),
                    encoding="utf-8")
    tables.plot(results, docs.parent / f"{name}.svg")
