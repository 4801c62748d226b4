//! The base of all scenarios: a containerd ([`target`]), and a node's folders with the program
//! ([`node`]).

pub mod autopilot;
pub mod bundles;
pub mod dashboard;
pub mod middleman;
pub mod mount;
pub mod node;
pub mod peer;
pub mod prometheus;
pub mod registry;
pub mod stage;
pub mod target;
pub mod terminal;
pub mod tools;

pub use harness::{Place, unique, wait_for, wait_until};
pub use node::Node;
pub use stage::Stage;
pub use target::{Own, Target, run_on, run_on_own};

/// Makes tests of a scenario, which is a function of a [`Target`]: on the stand-in and on each
/// generation of containerd.
///
/// Their names are `<scenario>::fake`, `<scenario>::containerd_1_6` and so on.
macro_rules! on_each_containerd {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            crate::support::on_the_stand_in!($scenario);
            crate::support::on_each_generation!($scenario, crate::support::run_on);
        }
    )+};
}

/// Makes tests of a scenario that the stand-in cannot play, on each generation of containerd.
macro_rules! on_each_real_containerd {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            crate::support::on_each_generation!($scenario, crate::support::run_on);
        }
    )+};
}

/// Makes a test of a scenario that inspects the stand-in or injects faults.
macro_rules! on_the_fake {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            crate::support::on_the_stand_in!($scenario);
        }
    )+};
}

/// Makes a test of a scenario that the stand-in cannot play. Every generation of containerd would
/// play it alike.
macro_rules! on_a_real_containerd {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            #[test]
            fn containerd_2_1() {
                crate::support::run_on(lab::Generation::V2_1, super::$scenario);
            }
        }
    )+};
}

/// Makes tests of a scenario that disturbs containerd. Each generation runs it on its own
/// containerd, with the options that a function returns.
macro_rules! on_its_own_containerd {
    ($options:ident; $($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            fn play(generation: lab::Generation, scenario: impl FnOnce(&mut crate::support::Own)) {
                crate::support::run_on_own(generation, &super::$options(), scenario);
            }
            crate::support::on_each_generation!($scenario, self::play);
        }
    )+};
}

/// Makes the test `fake` of a scenario.
macro_rules! on_the_stand_in {
    ($scenario:ident) => {
        #[test]
        fn fake() {
            crate::support::run_on(crate::support::Place::Fake, super::$scenario);
        }
    };
}

/// Makes the tests `containerd_1_6` and so on. A function plays the scenario on a generation.
macro_rules! on_each_generation {
    ($scenario:ident, $play:path) => {
        #[test]
        fn containerd_1_6() {
            $play(lab::Generation::V1_6, super::$scenario);
        }

        #[test]
        fn containerd_1_7() {
            $play(lab::Generation::V1_7, super::$scenario);
        }

        #[test]
        fn containerd_2_1() {
            $play(lab::Generation::V2_1, super::$scenario);
        }

        #[test]
        fn containerd_2_3() {
            $play(lab::Generation::V2_3, super::$scenario);
        }
    };
}

pub(crate) use {
    on_a_real_containerd, on_each_containerd, on_each_generation, on_each_real_containerd,
    on_its_own_containerd, on_the_fake, on_the_stand_in,
};

lab::serves_a_containerd!();
