//! [`reconcile()`]: the decision table.
