"""The storage daemon: chunks on disks, chains between daemons, recovery."""
