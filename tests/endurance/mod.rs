//! Long scenarios: hundreds of crashes, power cuts, simulated days, a thousand bundles.
//!
//! The short version of each is an ordinary test. The long version is for `cargo xtask` (`chaos`,
//! `powercut`, `churn`, `flips`, `standstill`, `crowd`, `fleet`). The long ones are marked as
//! ignored and read their length from the environment. All random decisions follow from a seed,
//! which is printed.

mod audit;
mod chaos;
mod churn;
mod crowd;
mod dice;
mod fleet;
mod flips;
mod many;
mod powercut;
mod standstill;

use lab::Generation;

/// The length of a long version and its seed.
struct Asked {
    rounds: usize,
    seed: u64,
}

impl Asked {
    /// Reads the arguments of `cargo xtask`.
    fn or(rounds: usize) -> Asked {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        Asked {
            rounds: number("AIRGAPD_TEST_ROUNDS").map_or(rounds, |rounds| {
                usize::try_from(rounds).expect("the number of rounds fits")
            }),
            seed: number("AIRGAPD_TEST_SEED").unwrap_or(1),
        }
    }
}

/// Returns the generations of containerd that `cargo xtask` selected: one, or both that new
/// clusters run.
fn generations_asked_for() -> Vec<Generation> {
    match std::env::var("AIRGAPD_TEST_GENERATION") {
        Ok(one) => vec![one.parse().expect("cargo xtask passes a generation")],
        Err(_) => vec![Generation::V1_7, Generation::V2_3],
    }
}

/// Checks that the ledger blames no file for the end of a daemon. Kills from outside and power cuts
/// are no file's fault.
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

/// Prints figures for the person who runs the long version.
#[allow(clippy::print_stdout, reason = "the figures are the result")]
fn say(text: &str) {
    println!("{text}");
}
