"""`fs3 admin`: what an operator sees and changes in a running cluster; docs/operations.md tells when.

Every command takes the cluster's URL first. What may lose data asks for a flag that says so; a change is one line of
what was done, and goes on by itself where it takes longer (`--wait` watches).
"""

from __future__ import annotations

import click

from fs3.cli import admin_change, admin_chunks, admin_lost, admin_names, admin_scrub, admin_show, admin_tables, room


@click.group()
def admin() -> None:
    """Look after a running cluster: nodes, disks, targets, chains, tables, chunks, names, quotas."""


for _module in (admin_show, admin_change, admin_tables, admin_chunks, admin_lost, admin_scrub, admin_names, room):
    for _command in _module.COMMANDS:
        admin.add_command(_command)
