// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {PriceFeed} from "./PriceFeed.sol";

/// @title Spot prices per product, the latest and a bounded history.
/// @notice Dollars per GPU-hour with eight decimals; never zero. A product's rounds count 1, 2,
/// 3, ..., their windows end later each time and never in the future, and the last HISTORY of
/// them are kept. Nothing is said of a product without a round.
contract PriceOracle is AccessControl {
    struct Round {
        uint64 priceE8;
        uint40 windowEnd;
    }

    struct PricePoint {
        uint64 product;
        uint64 priceE8;
        uint40 windowEnd;
    }

    bytes32 public constant PUBLISHER_ROLE = keccak256("PUBLISHER_ROLE");
    uint64 public constant HISTORY = 64;

    /// @notice The code behind every feed.
    PriceFeed public immutable FEED;

    /// @notice The product's AggregatorV3Interface; zero if it has none.
    mapping(uint64 product => address) public feed;
    mapping(uint64 product => uint64) private _last;
    mapping(uint64 product => mapping(uint256 place => Round)) private _rounds;

    event FeedCreated(uint64 indexed product, address feed, string description);
    event RoundPublished(
        uint64 indexed product, uint64 indexed round, uint64 priceE8, uint40 windowEnd
    );

    error NoData(uint64 product, uint256 round);
    error ZeroPrice(uint64 product);
    error RoundOutOfOrder(uint64 product, uint40 last, uint40 given);
    error WindowNotOver(uint64 product, uint40 windowEnd);
    error FeedExists(uint64 product);

    /// @param admin May grant and revoke the publisher's role.
    /// @param publisher May create feeds and publish rounds.
    constructor(address admin, address publisher) {
        FEED = new PriceFeed();
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
        _grantRole(PUBLISHER_ROLE, publisher);
    }

    /// @notice Give a product its feed. The address depends on nothing but oracle, product and
    /// description.
    function createFeed(uint64 product, string calldata description)
        external
        onlyRole(PUBLISHER_ROLE)
        returns (address created)
    {
        if (feed[product] != address(0)) revert FeedExists(product);
        created = Clones.cloneDeterministicWithImmutableArgs(
            address(FEED),
            abi.encode(address(this), product, description),
            bytes32(uint256(product))
        );
        feed[product] = created;
        emit FeedCreated(product, created, description);
    }

    /// @notice One round for each of many products; all of them, or none.
    function publish(PricePoint[] calldata points) external onlyRole(PUBLISHER_ROLE) {
        for (uint256 i = 0; i < points.length; ++i) {
            PricePoint calldata p = points[i];
            uint64 product = p.product;
            if (p.priceE8 == 0) revert ZeroPrice(product);
            if (p.windowEnd > block.timestamp) revert WindowNotOver(product, p.windowEnd);
            uint64 last = _last[product];
            uint40 lastEnd = _rounds[product][last % HISTORY].windowEnd;
            if (p.windowEnd <= lastEnd) revert RoundOutOfOrder(product, lastEnd, p.windowEnd);
            _last[product] = last + 1;
            _rounds[product][(last + 1) % HISTORY] = Round(p.priceE8, p.windowEnd);
            emit RoundPublished(product, last + 1, p.priceE8, p.windowEnd);
        }
    }

    /// @notice The product's last round. Reverts with NoData if there is none.
    function latest(uint64 product) external view returns (uint64 id, Round memory round) {
        id = _last[product];
        if (id == 0) revert NoData(product, 0);
        round = _rounds[product][id % HISTORY];
    }

    /// @notice One of the last HISTORY rounds. Reverts with NoData for any other.
    function roundAt(uint64 product, uint256 id) external view returns (Round memory) {
        uint256 last = _last[product];
        if (id == 0 || id > last || id + HISTORY <= last) revert NoData(product, id);
        return _rounds[product][id % HISTORY];
    }
}
