//! Passwords: hashed so that every C library of today can tell, and made up where one is wanted.

use std::fs::File;
use std::io::{self, Read};

use sha_crypt::{PasswordHasher, ShaCrypt};

/// Letters and digits that a person does not mistake for one another.
const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyzABCDEFGHJKMNPQRSTUVWXYZ23456789";

/// The SHA-512 crypt(5) hash of a password.
pub fn hash(password: &str) -> Result<String, String> {
    let mut salt = [0; 12];
    read_random(&mut salt).map_err(|error| format!("no salt: {error}"))?;
    let hash = ShaCrypt::SHA512.hash_password_with_salt(password.as_bytes(), &salt);
    hash.map(|hash| hash.to_string())
        .map_err(|error| format!("the password cannot be hashed: {error}"))
}

/// A password of so many letters.
pub fn random(length: usize) -> io::Result<String> {
    let mut bytes = vec![0; length];
    read_random(&mut bytes)?;
    let letter = |byte: &u8| LETTERS.get(usize::from(*byte) % LETTERS.len()).copied();
    let letters: Vec<u8> = bytes.iter().filter_map(letter).collect();
    Ok(String::from_utf8_lossy(&letters).into_owned())
}

fn read_random(bytes: &mut [u8]) -> io::Result<()> {
    File::open("/dev/urandom")?.read_exact(bytes)
}
