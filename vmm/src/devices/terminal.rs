//! What a device at which somebody types is to who brings the keys: the serial port's, the virtio
//! console's.

use std::io;
use std::sync::{Arc, Mutex};

/// Where what is typed comes from.
pub trait Keyboard: Send {
    /// The next bytes, at most so many; none where nothing is typed.
    fn take(&mut self, most: usize) -> Vec<u8>;
}

/// Nobody types.
impl Keyboard for io::Empty {
    fn take(&mut self, _: usize) -> Vec<u8> {
        Vec::new()
    }
}

/// A port that has room for more of what is typed.
pub trait Refill: Send {
    /// Takes from the keyboard what there is room for.
    fn refill(&mut self);
}

/// A port that somebody types at.
pub type SharedPort = Arc<Mutex<dyn Refill>>;
