//! Scenarios over the real program, on the stand-in and on real containerds.
//!
//! Each test is one claim about what an operator sees; a number in a comment is that of the statement in the
//! specification of imports it comes from. Bundles are made in the test, folders and namespaces are the test's own, so
//! all of them may run at once. Real containerds need root; what is left out for the lack of one is said, and fails with
//! `AIRGAPD_REQUIRE_CONTAINERD=1`.

#![allow(unreachable_pub, reason = "nothing outside this program can reach anything")]

mod archives;
mod asking;
mod bundling;
mod choosing;
mod coexisting;
mod content;
mod crashing;
mod crowding;
mod damage;
mod diagnosing;
mod discarding;
mod documentation;
mod documents;
mod doors;
mod dropping;
mod endurance;
mod examples;
mod exporting;
mod faults;
mod fleets;
mod flooding;
mod folders;
mod healing;
mod importing;
mod inspecting;
mod interruptions;
mod kubelet;
mod kubernetes;
mod listing;
mod lists;
mod living;
mod memory;
mod monitoring;
mod packaging;
mod placing;
mod reaching;
mod registries;
mod releasing;
mod reloading;
mod removing;
mod requiring;
mod restarting;
mod showing;
mod space;
mod strays;
mod support;
mod trust;
mod unpacking;
mod verifying;
mod watching;
