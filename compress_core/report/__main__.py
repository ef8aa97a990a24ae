"""The report stage."""

from __future__ import annotations

from compress_core.recipe import read_recipe
from compress_core.report import PAGE_FILE, write_report
from compress_core.report.comparing import compare
from compress_core.workspace import Workspace, ending_with_status


def main() -> None:
    """Compare all steps of the recipe in the working directory and write the report."""
    with ending_with_status():
        workspace = Workspace.here()
        report = compare(read_recipe(workspace.params), workspace)
        write_report(report, workspace)
        print(f"report: {len(report.order)} networks beside {report.reference!r}, in {workspace.report / PAGE_FILE}")


if __name__ == "__main__":
    main()
