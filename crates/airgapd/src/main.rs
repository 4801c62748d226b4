//! airgapd: imports image bundles into containerd on airgapped Kubernetes nodes.
#![expect(dead_code, reason = "the commands that use these modules are still to come")]

mod config;
mod folder;
mod ledger;
mod node;
mod sys;

fn main() {}
