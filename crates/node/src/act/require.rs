//! Runs the check of the required images, outside the loop.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use crate::decide::require::Checked;
use crate::required;
use crate::runtime::Containerd;
use crate::settings::Settings;
use crate::state::crash;
use crate::status::RequiredStatus;

type Task = AbortOnDropHandle<Result<RequiredStatus, containerd::Error>>;

/// The running check, if there is one.
#[derive(Default)]
pub(super) struct Check(Option<Task>);

impl Check {
    /// Starts a check.
    pub(super) fn begin(&mut self, settings: Arc<Settings>, runtime: Containerd) {
        let check = async move { required::check(&settings, &runtime).await };
        self.0 = Some(AbortOnDropHandle::new(tokio::spawn(check)));
    }

    /// Drops the check, which then never reports an end.
    pub(super) fn abort(&mut self) {
        self.0 = None;
    }

    /// Waits for the end of the check, forever while none runs. Safe to cancel.
    pub(super) async fn next(&mut self) -> Checked {
        let Some(task) = &mut self.0 else {
            return std::future::pending().await;
        };
        let ended = task.await;
        self.0 = None;
        match ended {
            Ok(Ok(found)) => Checked::Found(found),
            Ok(Err(error)) => Checked::Failed(basics::chain(&error)),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => Checked::Panicked(crash::panic_text(&*panic)),
                Err(error) => Checked::Failed(error.to_string()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_check_that_panics_says_so_and_ends_once() {
        let task = tokio::spawn(async { panic!("no\nway") });
        let mut check = Check(Some(AbortOnDropHandle::new(task)));
        let Checked::Panicked(text) = check.next().await else {
            panic!("another end")
        };
        assert!(text.starts_with("a panic: no"), "{text}");
        // While the daemon drains its jobs, it waits for the next check again.
        assert!(check.next().now_or_never().is_none());
    }
}
