// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {AggregatorV3Interface} from "./AggregatorV3Interface.sol";
import {PriceOracle} from "./PriceOracle.sol";

/// @title One product's prices behind Chainlink's interface.
/// @notice Dollars per GPU-hour with eight decimals. updatedAt is the end of the window that the
/// price was measured in, not the time it was written: a late price looks as old as it is.
/// @dev A minimal proxy per product; oracle, product and description are in the proxy's code, so
/// there is nothing to initialise and nothing to change.
contract PriceFeed is AggregatorV3Interface {
    function decimals() external pure returns (uint8) {
        return 8;
    }

    function version() external pure returns (uint256) {
        return 1;
    }

    function description() external view returns (string memory text) {
        (,, text) = _arguments();
    }

    /// @notice The packed product: class << 48 | region << 40 | grade << 32 | window.
    function product() external view returns (uint64 number) {
        (, number,) = _arguments();
    }

    /// @notice Where the prices are kept.
    function oracle() external view returns (PriceOracle source) {
        (source,,) = _arguments();
    }

    /// @inheritdoc AggregatorV3Interface
    /// @dev Reverts with NoData while there is no price.
    function latestRoundData()
        external
        view
        returns (uint80, int256, uint256, uint256, uint80)
    {
        (PriceOracle source, uint64 number,) = _arguments();
        (uint64 id, PriceOracle.Round memory round) = source.latest(number);
        return _answer(id, round);
    }

    /// @inheritdoc AggregatorV3Interface
    /// @dev Reverts with NoData for a round that never was, or is no longer kept.
    function getRoundData(uint80 roundId)
        external
        view
        returns (uint80, int256, uint256, uint256, uint80)
    {
        (PriceOracle source, uint64 number,) = _arguments();
        return _answer(roundId, source.roundAt(number, roundId));
    }

    function _answer(uint80 id, PriceOracle.Round memory round)
        private
        pure
        returns (uint80, int256, uint256, uint256, uint80)
    {
        return (
            id, int256(uint256(round.priceE8)), round.windowEnd, round.windowEnd, id
        );
    }

    function _arguments() private view returns (PriceOracle, uint64, string memory) {
        return
            abi.decode(Clones.fetchCloneArgs(address(this)), (PriceOracle, uint64, string));
    }
}
