"""One measured run and its report."""
