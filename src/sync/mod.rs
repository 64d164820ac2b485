//! The sync model: it decides how one folder and one proxy come to agree. Pure: no I/O, no clock, no logging.
//!
//! # Words
//!
//! **base**: per path, the content that both sides last agreed on. A tombstone that we have obeyed is kept as *seen*.
//! **local**, **remote**: the two sides now. **plan**, **action**: the decisions of a cycle. **outcome**: the result of
//! one action. **problem**: a path that cannot be synced now. **halt**: the plan as a whole is implausible.
//!
//! # The decision table
//!
//! `B` = base content. `L` = local content that differs from base (or has no base). `R` = other live remote
//! content. `tX` = tombstone of content X. `–` = nothing. `?` = unknown. *hints*: the index is no evidence
//! ([`IndexTrust`]). *detached*: the path has left the scope since both sides agreed on `B`.
//!
//! | row | base | local | index | action \[precondition\] |
//! |---|---|---|---|---|
//! | 1 | – | – | – | nothing |
//! | 2 | – | – | R | download, create only; *hints*: 404 and a deletion was *seen* → delete again, which heals the index |
//! | 3 | – | – | t | record seen |
//! | 4 | – | L | – | upload \[new\] |
//! | 5 | – | L | L | fsync, adopt; *hints*, and a deletion was *seen* → fetch: L → adopt; R → conflict; 404 → 8 |
//! | 6 | – | L | R | fetch: L → adopt; R → conflict; 404 → 4 |
//! | 7 | – | L | tL | fetch: 404 → trash; if *seen*, the user made it again → row 8 |
//! | 8 | – | L | tX | upload \[new\] |
//! | 9 | B | – | B or – | pass the delete gates, delete-remote \[B\] |
//! | 10 | B | – | t | base := seen; *hints*, and t is not of B → row 9 |
//! | 11 | B | – | R | download, create only (an edit beats a delete); *hints*: the blob is B → 9; 404 → base := seen |
//! | 12 | B | B | B | nothing |
//! | 13 | B | B | R | fetch: B → heal the index (*hints*); R → replace |
//! | 14 | B | B | t | fetch: 404 → trash; B → heal the index (*hints*); R → replace |
//! | 15 | B | B | – | fetch: B → heal the index; R → replace; proven tombstone → trash; else upload \[new\] |
//! | 16 | B | L | B or – | upload \[B\] |
//! | 17 | B | L | L | fsync, adopt; *hints* → row 18 |
//! | 18 | B | L | R | fetch: L → adopt; B → 16; R → conflict; 404 → 19 |
//! | 19 | B | L | t | upload \[new\] (an edit beats a delete) |
//! | 20 | any | ? | any | skip, report the problem |
//! | 21 | B, detached | – | B or R | download, create only |
//! | 22 | B, detached | – | – | nothing |
//!
//! A detached base is compared as any other: rows 12 to 20 hold for it, and row 10 without its exception. Rows 21 and
//! 22 replace rows 9 and 11, because the absence of the file proves nothing.
//!
//! Row 4 also holds for a large new file that has not been read yet: the upload computes its digest. An upload without
//! an answer counts as base when the proxy holds its content and the file is gone: row 9 instead of row 2 or 11.
//!
//! [`reconcile()`] implements this table, one match arm per row. [`safety`] has the gates.

pub mod plan;
pub mod reconcile;
pub mod safety;
pub mod snapshot;

pub use plan::{Action, Plan, PlanStep, Precondition};
pub use reconcile::{decide, reconcile};
pub use snapshot::{Base, IndexTrust, LocalState, RemoteSide, SkipReason};
