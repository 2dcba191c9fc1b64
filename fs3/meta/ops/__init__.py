"""The operations of meta, one module per family; each awaits nothing but its transaction, so it can be run again."""
