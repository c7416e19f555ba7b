//! Lets a guest's memory stand still: whoever works in it passes a gate before each turn, and who
//! wants it to stay as it is shuts the gate.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A gate, which is open. A clone is another handle of the same.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<RwLock<()>>);

impl Gate {
    /// Waits until the gate is open; it is not shut before the returned pass is dropped.
    pub fn pass(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for those who have passed, and keeps all others out until the returned guard is
    /// dropped.
    pub fn shut(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{TryRecvError, channel};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn nobody_passes_a_gate_that_is_shut() {
        let gate = Gate::default();
        drop((gate.pass(), gate.pass()));
        let shut = gate.shut();
        let (tell, told) = channel();
        let other = gate.clone();
        let thread = thread::spawn(move || {
            let _pass = other.pass();
            tell.send(()).unwrap();
        });
        thread::sleep(Duration::from_millis(50));
        assert_eq!(told.try_recv(), Err(TryRecvError::Empty));
        drop(shut);
        told.recv().unwrap();
        thread.join().unwrap();
    }
}
