import datetime as dt

import numpy as np

from pipeline.demo.landscape import Cover, land
from pipeline.demo.seasons import backscatter, reflectance


def places(side_m=3200, step_m=20):
    axis = np.arange(-side_m / 2 + step_m / 2, side_m / 2, step_m, dtype=np.float32)
    return np.meshgrid(axis, -axis)


def test_the_landscape_has_every_cover():
    there = land(*places())
    shares = {c: (there.cover == c).mean() for c in Cover if c != Cover.OUTSIDE}
    assert min(shares.values()) > 0.01 and max(shares.values()) < 0.2


def test_the_landscape_is_a_function_of_place():
    u, v = places()
    whole, part = land(u, v), land(u[30:70, 20:90], v[30:70, 20:90])
    np.testing.assert_array_equal(part.cover, whole.cover[30:70, 20:90])
    day = dt.date(2024, 6, 1)
    np.testing.assert_allclose(reflectance(part, day), reflectance(whole, day)[30:70, 20:90], rtol=1e-5)


def test_the_year_is_believable():
    there = land(*places())

    def ndvi(cover, *day):
        seen = reflectance(there, dt.date(2024, *day))[there.cover == cover]
        return float(((seen[:, 6] - seen[:, 2]) / (seen[:, 6] + seen[:, 2])).mean())

    assert ndvi(Cover.MAIZE, 7, 25) > 0.7 > 0.4 > ndvi(Cover.MAIZE, 4, 20)
    assert ndvi(Cover.WHEAT, 5, 10) > 0.7 > 0.35 > ndvi(Cover.WHEAT, 7, 25)
    assert ndvi(Cover.DECIDUOUS, 7, 1) - ndvi(Cover.DECIDUOUS, 1, 15) > 0.3
    assert abs(ndvi(Cover.EVERGREEN, 7, 1) - ndvi(Cover.EVERGREEN, 1, 15)) < 0.1
    assert ndvi(Cover.RICE, 5, 20) < 0.1 < 0.6 < ndvi(Cover.RICE, 8, 10)
    assert ndvi(Cover.WATER, 7, 1) < 0

    def vv(cover, *day):
        power = backscatter(there, dt.date(2024, *day), descending=True)[..., 0]
        return 10 * np.log10(power[there.cover == cover].mean())

    assert vv(Cover.TOWN, 6, 1) > -6 > -16 > vv(Cover.WATER, 6, 1)
    assert vv(Cover.RICE, 5, 20) < vv(Cover.RICE, 8, 10) - 5
