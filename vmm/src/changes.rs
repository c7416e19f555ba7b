//! That something about a VM has changed, for whoever waits to look again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// How often something has changed. A clone is another handle.
#[derive(Debug, Clone, Default)]
pub struct Changes(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    count: u64,
    waiting: Vec<Waker>,
}

impl Changes {
    /// Something has.
    pub fn tell(&self) {
        let mut state = self.state();
        state.count += 1;
        state.waiting.drain(..).for_each(Waker::wake);
    }

    /// Ready once something has changed since `seen`, which is then up to date.
    pub fn poll(&self, seen: &mut u64, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.count != *seen {
            *seen = state.count;
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|w| w.will_wake(context.waker())) {
            state.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_once_also_by_who_comes_late() {
        let changes = Changes::default();
        let (mut seen, mut context) = (0, Context::from_waker(Waker::noop()));
        assert!(changes.poll(&mut seen, &mut context).is_pending());
        changes.tell();
        changes.tell();
        assert!(changes.poll(&mut seen, &mut context).is_ready());
        assert!(changes.poll(&mut seen, &mut context).is_pending());
    }
}
