//! What follows from what is known: pure functions, which get the time as a value.

pub mod coexistence;
pub mod desired;
pub(crate) mod healing;
pub(crate) mod link;
pub(crate) mod withdraw;
