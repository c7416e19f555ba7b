//! Unified kernel images (UAPI.5): a PE file with kernel, initramfs and command line in sections.

use object::LittleEndian as LE;
use object::read::pe::PeFile64;

/// No image is larger.
pub(super) const MAX: u64 = 512 << 20;

/// An image's sections.
pub(super) struct Uki<'a> {
    sections: Vec<(Vec<u8>, &'a [u8])>,
}

impl<'a> Uki<'a> {
    /// Reads an image that has a kernel in it.
    pub(super) fn parse(image: &'a [u8]) -> Result<Self, String> {
        let file = PeFile64::parse(image).map_err(|error| error.to_string())?;
        let section = |section: &object::pe::ImageSectionHeader| {
            let data = section.pe_data(image).ok()?;
            // What is in the file is padded; what is in memory is the content.
            let len = usize::try_from(section.virtual_size.get(LE)).ok()?;
            let data = data.get(..len).unwrap_or(data);
            Some((section.raw_name().to_vec(), data))
        };
        let sections = file.section_table().iter().filter_map(section).collect();
        let uki = Self { sections };
        if !uki.has(".linux") {
            return Err("has no .linux section".to_owned());
        }
        Ok(uki)
    }

    /// A section's content.
    pub(super) fn section(&self, name: &str) -> Option<&'a [u8]> {
        let mut sections = self.sections.iter();
        let found = sections.find(|(section, _)| section == name.as_bytes());
        found.map(|(_, data)| *data)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.section(name).is_some()
    }

    /// `.cmdline`.
    pub(super) fn cmdline(&self) -> String {
        let text = self.section(".cmdline").unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        text.trim_end_matches('\0').trim().to_owned()
    }

    /// A field of `.osrel`, which is as os-release(5) has it.
    pub(super) fn os_release(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(self.section(".osrel")?);
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim().trim_matches(['"', '\'']).to_owned())
    }
}
