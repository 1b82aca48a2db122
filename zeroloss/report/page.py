"""The page a person looks at: one HTML file that needs nothing else."""

from pathlib import Path
from string import Template

from plotly.offline import get_plotlyjs

from zeroloss import runs
from zeroloss.errors import RunError
from zeroloss.report import comparison_page, study_page
from zeroloss.report.figures import write_figures
from zeroloss.report.markup import asset, configuration, embedded, text
from zeroloss.report.study_figures import write_study_figures
from zeroloss.runs.folder import FIGURES, REPORT


def write(folder: Path) -> Path:
    """Write the figures and `report.html` of the run in `folder`; returns the path of the page.

    The run is a comparison or a study, as its config says. The page holds everything it shows, Plotly
    included, and opens without a network.

    Raises `RunError` when the folder holds no readable run or cannot be written to.
    """
    folder = Path(folder)
    config, results = runs.read(folder)
    try:
        if config.get("command") == "study":
            write_study_figures(config, results, folder / FIGURES)
            page = study_page.page(config, results)
        else:
            write_figures(config, results, folder / FIGURES)
            page = comparison_page.page(config, results, folder / FIGURES)
        html = Template(asset("page.html")).substitute(
            page._asdict() | {"panels": embedded(page.panels)},
            configuration=configuration(config),
            version=text(config.get("versions", {}).get("zeroloss", "")),
            style=asset("page.css"),
            plotly=get_plotlyjs().replace("</script", "<\\/script"),
            script=asset("page.js"),
        )
        (folder / REPORT).write_text(html, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}.") from error
    return folder / REPORT
