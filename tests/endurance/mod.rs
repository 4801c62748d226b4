//! What takes long: hundreds of crashes, power cuts, simulated days, a thousand bundles.
//!
//! Each has a short version that is a test like others, and a long one that `cargo xtask` asks for
//! (`chaos`, `powercut`, `churn`, `standstill`, `crowd`); those are marked as ignored and read how
//! long they shall take from the environment. Everything random follows from a seed, which is
//! printed.

mod audit;
mod chaos;
mod churn;
mod crowd;
mod dice;
mod many;
mod powercut;
mod standstill;

use lab::Generation;

/// How much of the long version is wanted.
struct Asked {
    rounds: usize,
    seed: u64,
}

impl Asked {
    /// Reads what `cargo xtask` was asked for.
    fn or(rounds: usize) -> Asked {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        Asked {
            rounds: number("AIRGAPD_TEST_ROUNDS").map_or(rounds, |rounds| {
                usize::try_from(rounds).expect("nobody has that much time")
            }),
            seed: number("AIRGAPD_TEST_SEED").unwrap_or(1),
        }
    }
}

/// The generations of containerd that `cargo xtask` was asked for: one, or both that new clusters
/// run.
fn generations_asked_for() -> Vec<Generation> {
    match std::env::var("AIRGAPD_TEST_GENERATION") {
        Ok(one) => vec![one.parse().expect("cargo xtask passes a generation")],
        Err(_) => vec![Generation::V1_7, Generation::V2_3],
    }
}

/// Looks whether a ledger blames a file for the end of a daemon. Kills from outside and power cuts
/// are no fault of a file.
fn blames_no_file(ledger: &serde_json::Value) -> Result<(), String> {
    let entries = ledger["bundles"].as_object().into_iter().flatten();
    match entries
        .map(|(_, entry)| entry)
        .find(|entry| entry.get("crashes").is_some())
    {
        Some(blamed) => Err(format!("a file is blamed: {blamed}")),
        None => Ok(()),
    }
}

/// Tells whoever asked for the long version.
#[allow(clippy::print_stdout, reason = "the figures are what it is for")]
fn say(text: &str) {
    println!("{text}");
}
