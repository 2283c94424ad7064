// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title What a fill says, and how a batch of them becomes one root.
/// @notice A fill is 30 bytes, big endian: buyer u24, seller u24, price_ticks u24, qty_lots u32,
/// series u16, window u24, buyer's order u32, seller's order u32, buyer's fee u16, seller's fee u16
/// (parts per million, so at most 6.6 per cent). A window is its kind (3 bits) and its first hour
/// since 1970 (21 bits).
/// @dev The leaf of a fill is the hash of one word, its index in the batch (u16) before its bytes;
/// a node is the hash of two words, the second being zero where there is no right neighbour. So no
/// node can be passed off as a leaf, nor one place of a batch as another.
library Fills {
    uint256 internal constant BYTES = 30;
    uint256 internal constant COUNT_MAX = 1 << 16;
    /// @dev A price times a quantity is exactly µUSDC; fees are rounded down, each fill by itself.
    uint256 internal constant PPM = 1_000_000;
    uint256 private constant SECONDS_PER_LOT = 36;
    uint256 private constant SPOT_SECONDS_MAX = 60 days;

    /// @notice A fill, read.
    struct Fill {
        uint256 buyer;
        uint256 seller;
        uint256 price;
        uint256 qty;
        uint256 series;
        uint256 window;
        uint256 buyerOrder;
        uint256 sellerOrder;
        uint256 buyerFee;
        uint256 sellerFee;
    }

    function read(uint240 packed) internal pure returns (Fill memory) {
        uint256 word = packed;
        return Fill({
            buyer: word >> 216,
            seller: (word >> 192) & 0xffffff,
            price: (word >> 168) & 0xffffff,
            qty: (word >> 136) & 0xffffffff,
            series: (word >> 120) & 0xffff,
            window: (word >> 96) & 0xffffff,
            buyerOrder: (word >> 64) & 0xffffffff,
            sellerOrder: (word >> 32) & 0xffffffff,
            buyerFee: (word >> 16) & 0xffff,
            sellerFee: word & 0xffff
        });
    }

    /// @notice Price times quantity, µUSDC: what is paid for delivery in full.
    function notional(Fill memory fill) internal pure returns (uint256) {
        return fill.price * fill.qty;
    }

    /// @notice What is locked for a fill: the notional and the buyer's fee.
    function cost(Fill memory fill) internal pure returns (uint256) {
        uint256 amount = notional(fill);
        return amount + amount * fill.buyerFee / PPM;
    }

    /// @notice Unix seconds: when delivery begins and ends.
    /// @dev Spot hours have no window of their own. They begin when their batch is posted and end
    /// when a single GPU would have delivered all of them, the latest that it can be; or, of many,
    /// after 60 days.
    function span(Fill memory fill, uint256 postedAt)
        internal
        pure
        returns (uint256 start, uint256 end)
    {
        uint256 kind = fill.window >> 21;
        if (kind == 0) {
            uint256 lasts = fill.qty * SECONDS_PER_LOT;
            return (postedAt, postedAt + (lasts < SPOT_SECONDS_MAX ? lasts : SPOT_SECONDS_MAX));
        }
        start = (fill.window & 0x1fffff) * 1 hours;
        if (kind == 1) return (start, start + 1 hours);
        if (kind == 2) return (start, start + 1 days);
        if (kind == 3) return (start, start + 7 days);
        return (start, start + (24 + kind) * 1 days); // 28 to 31 days
    }

    /// @notice When delivery ends.
    function endOf(Fill memory fill, uint256 postedAt) internal pure returns (uint256 end) {
        // slither-disable-next-line unused-return (the start is not asked for)
        (, end) = span(fill, postedAt);
    }

    /// @notice Whether these are hours without a fixed window.
    function isSpot(Fill memory fill) internal pure returns (bool) {
        return fill.window >> 21 == 0;
    }

    /// @notice The part of the notional that is due for delivery from the start until a time.
    /// Rounded down, in favour of the buyer, who pays.
    function due(Fill memory fill, uint256 postedAt, uint256 until)
        internal
        pure
        returns (uint256)
    {
        (uint256 start, uint256 end) = span(fill, postedAt);
        if (until <= start) return 0;
        if (until >= end) return notional(fill);
        return notional(fill) * (until - start) / (end - start);
    }

    /// @notice How the locked cost is divided when so much of the notional is paid. Fees are due
    /// on what is paid alone, each rounded down, in favour of who pays it.
    function divide(Fill memory fill, uint256 paid)
        internal
        pure
        returns (uint256 toSeller, uint256 toBuyer, uint256 fees)
    {
        uint256 sellerFee = paid * fill.sellerFee / PPM;
        uint256 buyerFee = paid * fill.buyerFee / PPM;
        return (paid - sellerFee, cost(fill) - paid - buyerFee, sellerFee + buyerFee);
    }

    /// @notice The root that a fill at this place proves, by its siblings from the leaf upwards.
    /// Zero, which is no root, if the path is longer than the index has bits.
    function rootOf(uint256 index, uint240 packed, bytes32[] calldata path)
        internal
        pure
        returns (bytes32 node)
    {
        uint256 word = index << 240 | packed;
        assembly ("memory-safe") {
            mstore(0x00, word)
            node := keccak256(0x00, 0x20)
        }
        return climb(node, index, path);
    }

    /// @notice From a node at a place of the lowest level to the root.
    function climb(bytes32 node, uint256 index, bytes32[] calldata path)
        internal
        pure
        returns (bytes32)
    {
        for (uint256 i = 0; i < path.length; ++i) {
            bytes32 sibling = path[i];
            bool isRight = index & 1 == 1;
            assembly ("memory-safe") {
                let side := shl(5, isRight)
                mstore(side, node)
                mstore(xor(side, 0x20), sibling)
                node := keccak256(0x00, 0x40)
            }
            index >>= 1;
        }
        return index == 0 ? node : bytes32(0);
    }

    /// @notice The root over words in memory, which it overwrites; there must be room for one
    /// more word behind them.
    function reduce(uint256 words, uint256 count) internal pure returns (bytes32 root) {
        assembly ("memory-safe") {
            for {} gt(count, 1) {} {
                mstore(add(words, shl(5, count)), 0)
                count := shr(1, add(count, 1))
                let to := words
                let from := words
                let end := add(words, shl(5, count))
                for {} lt(add(to, 0xe0), end) {} { // eight at a time
                    mstore(to, keccak256(from, 0x40))
                    mstore(add(to, 0x20), keccak256(add(from, 0x40), 0x40))
                    mstore(add(to, 0x40), keccak256(add(from, 0x80), 0x40))
                    mstore(add(to, 0x60), keccak256(add(from, 0xc0), 0x40))
                    mstore(add(to, 0x80), keccak256(add(from, 0x100), 0x40))
                    mstore(add(to, 0xa0), keccak256(add(from, 0x140), 0x40))
                    mstore(add(to, 0xc0), keccak256(add(from, 0x180), 0x40))
                    mstore(add(to, 0xe0), keccak256(add(from, 0x1c0), 0x40))
                    to := add(to, 0x100)
                    from := add(from, 0x200)
                }
                for {} lt(to, end) {} {
                    mstore(to, keccak256(from, 0x40))
                    to := add(to, 0x20)
                    from := add(from, 0x40)
                }
            }
            root := mload(words)
        }
    }
}
