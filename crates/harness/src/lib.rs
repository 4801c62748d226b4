//! The containerd that a test works with: the stand-in, or a real containerd of each generation.
//!
//! A scenario is a function of a [`Stage`]. [`everywhere!`] makes tests of it: for the stand-in and
//! for each generation. [`play`] runs it. A scenario that stops, kills or fills its containerd gets
//! its own ([`play_on_own`]).

mod conditions;
mod stage;

pub use conditions::{PATIENCE, collect_garbage, eventually, unique, wait_for, wait_until};
pub use fake_containerd::FakeConfig;
pub use lab::Generation;
pub use stage::{Own, Place, Stage, play, play_on_own};

/// Makes tests of scenarios: `on_the_stand_in::<scenario>`, and a test on each generation, such as
/// `on_containerd_1_6::<scenario>`.
///
/// The path before the semicolon names a function that plays a scenario at a place: a [`Place`] or
/// a [`Generation`].
#[macro_export]
macro_rules! everywhere {
    ($play:path; $($scenario:ident)*) => {
        mod on_the_stand_in {
            $(#[test]
            fn $scenario() {
                $play($crate::Place::Fake, super::$scenario);
            })*
        }
        $crate::on_each_generation! { $play; $($scenario)* }
    };
}

/// Makes the tests of [`everywhere!`] except those on the stand-in. The function takes a
/// [`Generation`].
#[macro_export]
macro_rules! on_each_generation {
    ($play:path; $($scenario:ident)*) => {
        $crate::on_each_generation!(@in on_containerd_1_6 V1_6 $play; $($scenario)*);
        $crate::on_each_generation!(@in on_containerd_1_7 V1_7 $play; $($scenario)*);
        $crate::on_each_generation!(@in on_containerd_2_1 V2_1 $play; $($scenario)*);
        $crate::on_each_generation!(@in on_containerd_2_3 V2_3 $play; $($scenario)*);
    };
    (@in $module:ident $generation:ident $play:path; $($scenario:ident)*) => {
        mod $module {
            $(#[test]
            fn $scenario() {
                $play($crate::Generation::$generation, super::$scenario);
            })*
        }
    };
}
