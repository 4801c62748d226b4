//! The timer of the loop, which wakes the process once for each time.
//!
//! tokio keeps timers in wheels. For a time seconds ahead, it wakes the process three times:
//! twice to move the timer to a finer wheel. An idle daemon has hardly any other wake-ups.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// A timer of the kernel (timerfd_create(2)). Without one, the loop uses tokio's timers.
pub(super) struct Alarm(Option<AsyncFd<OwnedFd>>);

impl Alarm {
    /// Returns a timer that is not set. Must be called inside a tokio runtime.
    pub(super) fn new() -> Alarm {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(io::Error::from);
        let timer = timer.and_then(|timer| sys::watch_events(timer, Interest::READABLE));
        Alarm(timer.ok())
    }

    /// Sleeps until this time. Returns at once if the time is past. Safe to cancel: the next call
    /// sets the timer anew.
    pub(super) async fn until(&self, until: Instant) {
        while let Some(left) = until
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        {
            match &self.0 {
                Some(timer) if set(timer, left).is_ok() => expired(timer).await,
                _ => tokio::time::sleep(left).await,
            }
        }
    }
}

/// Sets the timer, so that it expires once, after this time. Forgets an expiration that was not
/// read.
fn set(timer: &AsyncFd<OwnedFd>, left: Duration) -> io::Result<()> {
    let once = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec::try_from(left).map_err(io::Error::other)?,
    };
    timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

/// Waits until the timer has expired. Safe to cancel.
async fn expired(timer: &AsyncFd<OwnedFd>) {
    loop {
        // The runtime may still know of an earlier expiration. Then there is nothing to read.
        let Ok(mut ready) = timer.readable().await else {
            return;
        };
        let read = |timer: &AsyncFd<OwnedFd>| Ok(rustix::io::read(timer.get_ref(), &mut [0; 8])?);
        if ready.try_io(read).is_ok() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_wakes_at_its_time_again_and_again_and_never_before() {
        let alarm = Alarm::new();
        for milliseconds in [30, 1, 0, 80] {
            let until = Instant::now() + Duration::from_millis(milliseconds);
            alarm.until(until).await;
            assert!(Instant::now() >= until, "{milliseconds} ms");
        }
        alarm.until(Instant::now()).await;
    }

    #[tokio::test]
    async fn a_time_that_was_given_up_does_not_end_the_next() {
        for alarm in [Alarm::new(), Alarm(None)] {
            let until = Instant::now() + Duration::from_millis(20);
            let given_up = tokio::time::timeout(Duration::from_millis(1), alarm.until(until)).await;
            assert!(given_up.is_err());
            let until = Instant::now() + Duration::from_millis(60);
            alarm.until(until).await;
            assert!(Instant::now() >= until);
        }
    }
}
