"""Models in object stores: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage.

`bucket` reads and writes objects, `store` publishes models, `origin` is what they are fetched from. obstore does the
talking; it is imported when a store is first opened, and absent from servers that fetch from no object store.
"""

from mlimg.runtime.stores.objects.bucket import Bucket, ObjectInfo
from mlimg.runtime.stores.objects.origin import ObjectOrigin
from mlimg.runtime.stores.objects.store import ObjectStore

__all__ = ["Bucket", "ObjectInfo", "ObjectOrigin", "ObjectStore"]
