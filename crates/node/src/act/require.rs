//! Runs the check of the required images, outside the loop.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use crate::decide::require::Checked;
use crate::required::{self, Reader};
use crate::runtime::Containerd;
use crate::settings::Settings;
use crate::state::crash;
use crate::status::RequiredStatus;

type Task = AbortOnDropHandle<Result<RequiredStatus, containerd::Error>>;

/// The running check, if there is one, and the reader of the sources.
#[derive(Default)]
pub(super) struct Check {
    task: Option<Task>,
    reader: Reader,
}

impl Check {
    /// Starts a check.
    pub(super) fn begin(&mut self, settings: Arc<Settings>, runtime: Containerd) {
        let reader = self.reader.clone();
        let check = async move { required::check(&settings, &runtime, &reader).await };
        self.task = Some(AbortOnDropHandle::new(tokio::spawn(check)));
    }

    /// Returns the stamps of the files that `require` names. Returns `None` if a file system does
    /// not answer within half a second. Safe to cancel.
    pub(super) async fn stamp(&self, settings: &Settings) -> Option<String> {
        self.reader.stamp(&settings.require).await
    }

    /// Drops the check, which then never reports an end.
    pub(super) fn abort(&mut self) {
        self.task = None;
    }

    /// Waits for the end of the check, forever while none runs. Safe to cancel.
    pub(super) async fn next(&mut self) -> Checked {
        let Some(task) = &mut self.task else {
            return std::future::pending().await;
        };
        let ended = task.await;
        self.task = None;
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
        let mut check = Check {
            task: Some(AbortOnDropHandle::new(task)),
            ..Check::default()
        };
        let Checked::Panicked(text) = check.next().await else {
            panic!("another end")
        };
        assert!(text.starts_with("a panic: no"), "{text}");
        // While the daemon drains its jobs, it waits for the next check again.
        assert!(check.next().now_or_never().is_none());
    }
}
