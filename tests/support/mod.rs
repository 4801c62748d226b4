//! What scenarios stand on: a containerd to work with ([`target`]), a node's folders and the program on it ([`node`]).

pub mod bundles;
pub mod conditions;
pub mod containerds;
pub mod middleman;
pub mod node;
pub mod registry;
pub mod stage;
pub mod target;
pub mod tools;

pub use conditions::{unique, wait_for, wait_until};
pub use node::Node;
pub use stage::Stage;
pub use target::{Own, Place, Target, run_on, run_on_own};

/// Makes tests of a scenario, a function of a [`Target`]: one on the stand-in and one on each generation of containerd.
///
/// They are called `<scenario>::fake`, `<scenario>::containerd_1_6` and so on.
macro_rules! on_each_containerd {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            #[test]
            fn fake() {
                crate::support::run_on(crate::support::Place::Fake, super::$scenario);
            }
            crate::support::on_real_containerds!($scenario);
        }
    )+};
}

/// Makes tests of a scenario that the stand-in cannot play: one on each generation of containerd.
macro_rules! on_each_real_containerd {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            crate::support::on_real_containerds!($scenario);
        }
    )+};
}

/// Makes a test of a scenario that needs to look into the stand-in, or to hurt it.
macro_rules! on_the_fake {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            #[test]
            fn fake() {
                crate::support::run_on(crate::support::Place::Fake, super::$scenario);
            }
        }
    )+};
}

macro_rules! on_real_containerds {
    ($scenario:ident) => {
        #[test]
        fn containerd_1_6() {
            crate::support::run_on(
                crate::support::Place::Real(lab::Generation::V1_6),
                super::$scenario,
            );
        }

        #[test]
        fn containerd_1_7() {
            crate::support::run_on(
                crate::support::Place::Real(lab::Generation::V1_7),
                super::$scenario,
            );
        }

        #[test]
        fn containerd_2_1() {
            crate::support::run_on(
                crate::support::Place::Real(lab::Generation::V2_1),
                super::$scenario,
            );
        }

        #[test]
        fn containerd_2_3() {
            crate::support::run_on(
                crate::support::Place::Real(lab::Generation::V2_3),
                super::$scenario,
            );
        }
    };
}

/// Makes tests of a scenario that does to containerd what nobody else may see: each generation, one of its own, with the
/// options that a function gives.
macro_rules! on_its_own_containerd {
    ($options:ident; $($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            #[test]
            fn containerd_1_6() {
                crate::support::run_on_own(lab::Generation::V1_6, &super::$options(), super::$scenario);
            }

            #[test]
            fn containerd_1_7() {
                crate::support::run_on_own(lab::Generation::V1_7, &super::$options(), super::$scenario);
            }

            #[test]
            fn containerd_2_1() {
                crate::support::run_on_own(lab::Generation::V2_1, &super::$options(), super::$scenario);
            }

            #[test]
            fn containerd_2_3() {
                crate::support::run_on_own(lab::Generation::V2_3, &super::$options(), super::$scenario);
            }
        }
    )+};
}

pub(crate) use {
    on_each_containerd, on_each_real_containerd, on_its_own_containerd, on_real_containerds, on_the_fake,
};
