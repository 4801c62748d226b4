//! Unpacks images ahead, outside the loop.

use std::sync::Arc;

use import::unpack::{Ahead, AheadObserver, UnpackError, Unpacked, unpack_ahead};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::decide::unpack::{UnpackEnd, UnpackProgress};
use crate::runtime::{self, Containerd};
use crate::settings::Settings;
use crate::state::crash;

/// The running unpacking, if there is any.
#[derive(Default)]
pub(super) struct Unpacking(Option<Task>);

struct Task {
    work: AbortOnDropHandle<Result<(), UnpackError>>,
    progress: mpsc::UnboundedReceiver<UnpackProgress>,
    stop: CancellationToken,
}

impl Unpacking {
    /// Starts to unpack these images, in this order.
    pub(super) fn begin(&mut self, images: Vec<Ahead>, settings: Arc<Settings>, runtime: Containerd) {
        let (sender, progress) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let work = tokio::spawn(async move {
            let unpacker = runtime::unpacker(&settings, &runtime).await?;
            let observer = Observer(sender);
            unpack_ahead(&runtime.client, &unpacker, &images, &stopped, &observer).await
        });
        let work = AbortOnDropHandle::new(work);
        self.0 = Some(Task { work, progress, stop });
    }

    /// Stops the unpacking after the layer under way.
    pub(super) fn interrupt(&self) {
        if let Some(task) = &self.0 {
            task.stop.cancel();
        }
    }

    /// Waits for the next progress report, forever while nothing is unpacked. Safe to cancel.
    pub(super) async fn next(&mut self) -> UnpackProgress {
        let Some(task) = &mut self.0 else {
            return std::future::pending().await;
        };
        // All progress that was sent before the end comes before the end.
        if let Some(progress) = task.progress.recv().await {
            return progress;
        }
        let ended = (&mut task.work).await;
        self.0 = None;
        UnpackProgress::Ended(match ended {
            Ok(Ok(())) => UnpackEnd::Done,
            Ok(Err(UnpackError::Stopped)) => UnpackEnd::Stopped,
            Ok(Err(error)) => UnpackEnd::Failed(basics::chain(&error)),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => UnpackEnd::Failed(crash::panic_text(&*panic)),
                Err(_) => UnpackEnd::Stopped,
            },
        })
    }
}

/// Sends the progress to the loop.
struct Observer(mpsc::UnboundedSender<UnpackProgress>);

impl AheadObserver for Observer {
    fn found(&self, images: usize) {
        let _ = self.0.send(UnpackProgress::Found(images));
    }

    fn image(&self, image: &Ahead, ended: &Result<Unpacked, UnpackError>) {
        let (name, target) = (image.name.clone(), image.target.clone());
        let _ = self.0.send(match ended {
            Ok(Unpacked { layers, .. }) => UnpackProgress::Unpacked {
                name,
                target,
                layers: *layers,
            },
            Err(error) => UnpackProgress::Failed {
                name,
                target,
                reason: basics::chain(error),
                is_content: error.is_content(),
            },
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn unpacking_that_panics_ends_once_after_all_that_it_has_sent() {
        let (sender, progress) = mpsc::unbounded_channel();
        let work = tokio::spawn(async move {
            Observer(sender).found(3);
            panic!("no way")
        });
        let mut unpacking = Unpacking(Some(Task {
            work: AbortOnDropHandle::new(work),
            progress,
            stop: CancellationToken::new(),
        }));
        assert!(matches!(unpacking.next().await, UnpackProgress::Found(3)));
        let UnpackProgress::Ended(UnpackEnd::Failed(why)) = unpacking.next().await else {
            panic!("another end")
        };
        assert_eq!(why, "a panic: no way");
        // While the daemon drains its jobs, it waits for the next report again.
        assert!(unpacking.next().now_or_never().is_none());
    }
}
