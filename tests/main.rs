//! Scenarios over the real program, on the stand-in and on real containerds.
//!
//! Each test is one claim that an operator can observe. A number in a comment is that of a
//! statement in the specification of imports. Tests make their own bundles, folders and namespaces,
//! so all of them may run at once. Real containerds need root. A test that is left out is reported,
//! and fails with `AIRGAPD_REQUIRE_CONTAINERD=1`.

#![allow(unreachable_pub, reason = "nothing outside this program can reach anything")]

mod admission;
mod ansible;
mod autopilot;
mod backup;
mod checksums;
mod concurrent_imports;
mod config;
mod connection;
mod containerd_outages;
mod content_store;
mod control_socket;
mod crashes;
mod damaged_bundles;
mod discarded_layers;
mod disk_space;
mod doctor;
mod documentation;
mod endurance;
mod examples;
mod export;
mod extracted_layouts;
mod file_identity;
mod fleet_config;
mod fleet_engines;
mod foreign_records;
mod foreign_text;
mod idle;
mod images;
mod images_dirs;
mod images_folder;
mod import;
mod inspect;
mod json_documents;
mod kubelet;
mod kubernetes;
mod ledger;
mod list_images;
mod log;
mod manifest_choice;
mod memory;
mod merge_split_diff;
mod metrics;
mod names;
mod node_features;
mod other_files;
mod other_importers;
mod own_image;
mod peers;
mod permissions;
mod pipe;
mod progress;
mod pull_lists;
mod ready;
mod receipts;
mod registries;
mod release;
mod release_archives;
mod releases;
mod reload;
mod removal;
mod report;
mod require;
mod restart;
mod restore;
mod runbook;
mod scrub;
mod signatures;
mod status;
mod stop;
mod sub_folders;
mod support;
mod systemd;
mod tool_archives;
mod trusted_digests;
mod two_daemons;
mod unpack;
mod unpacked_files;
mod uploads;
mod verdict;
mod verify;
mod wait;
mod watch;
