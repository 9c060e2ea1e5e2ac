/// Which kind of tag tells a VLAN from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagProtocol {
    /// IEEE 802.1Q: customers' tags, 0x8100.
    Customer,
    /// IEEE 802.1ad: providers' tags, 0x88a8, usually around a customer's ("QinQ").
    Service,
}

/// A VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    /// Its kind.
    pub protocol: TagProtocol,
    /// The VLAN, 1 ..= 4094.
    pub id: u16,
    /// The priority code point, 0 ..= 7.
    pub priority: u8,
}

impl VlanTag {
    /// Returns a tag of 802.1Q without priority.
    pub const fn customer(id: u16) -> Self {
        Self {
            protocol: TagProtocol::Customer,
            id,
            priority: 0,
        }
    }

    /// Returns the tag as it lies in a frame: its kind, then priority, drop eligibility (no) and
    /// VLAN.
    pub const fn to_bytes(self) -> [u8; 4] {
        let [a, b] = match self.protocol {
            TagProtocol::Customer => [0x81, 0x00],
            TagProtocol::Service => [0x88, 0xa8],
        };
        let control = (self.priority as u16) << 13 | self.id & 0xfff;
        let [c, d] = control.to_be_bytes();
        [a, b, c, d]
    }
}

/// The tags of a frame that has any: one or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// The first one on the wire.
    pub outermost: VlanTag,
    /// The one behind it.
    pub inner: Option<VlanTag>,
}

impl Vlan {
    /// Returns one tag of 802.1Q.
    pub const fn customer(id: u16) -> Self {
        Self {
            outermost: VlanTag::customer(id),
            inner: None,
        }
    }

    /// Puts another tag in front of those that are there; nothing if there are two.
    pub fn push(tags: Option<Self>, tag: VlanTag) -> Option<Self> {
        let inner = match tags {
            None => None,
            Some(Self {
                outermost,
                inner: None,
            }) => Some(outermost),
            Some(Self { inner: Some(_), .. }) => return None,
        };
        Some(Self {
            outermost: tag,
            inner,
        })
    }

    /// Returns what is left without the outermost tag.
    pub fn pop(self) -> Option<Self> {
        self.inner.map(|outermost| Self {
            outermost,
            inner: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_stack_up_to_two() {
        let (a, b) = (VlanTag::customer(7), VlanTag::customer(8));
        let one = Vlan::push(None, a);
        assert_eq!(one, Some(Vlan::customer(7)));
        let two = Vlan::push(one, b).unwrap();
        assert_eq!((two.outermost, two.inner), (b, Some(a)));
        assert_eq!(two.pop(), one);
        assert_eq!(two.pop().unwrap().pop(), None);
        assert_eq!(Vlan::push(Some(two), a), None);
    }

    #[test]
    fn a_tag_has_its_kind_priority_and_vlan() {
        assert_eq!(VlanTag::customer(0x123).to_bytes(), [0x81, 0, 0x01, 0x23]);
        let service = VlanTag {
            protocol: TagProtocol::Service,
            id: 4094,
            priority: 5,
        };
        assert_eq!(service.to_bytes(), [0x88, 0xa8, 0xaf, 0xfe]);
    }
}
