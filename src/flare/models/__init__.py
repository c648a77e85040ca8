"""Networks, which know no Lightning, and the module that trains them."""
